"""The one place that names which slime, Megatron and container image the cluster path is written against.

The image is the newest whose digest is public that was built with this Megatron commit and SGLang 0.5.15.post1. It
carries slime's main of its build day, older than what the contract was read at, so the container checks out
`SLIME_COMMIT` over it; `actors/slime_contract.py` looks at what is really there.
"""

SLIME_COMMIT = "624b824a898ab0ec1fcb4d373004c7f3852bf515"
SLIME_REPOSITORY = "https://github.com/THUDM/slime.git"
MEGATRON_COMMIT = "1dcf0dafa884ad52ffb243625717a3471643e087"

SLIME_IMAGE = (
    "slimerl/slime:nightly-dev-20260722a@sha256:a97ec147e37bef050337a9b229036eda00b4aa9c4d02b31a0109dc850f8ca342"
)
"""SGLang, Megatron and slime as one tested set; the tag is for people, the digest is what is pulled."""
SLIME_HOME = "/root/slime"
MEGATRON_HOME = "/root/Megatron-LM"
"""Where the image has them."""

CHECK_OUT_SLIME = (
    f"if [ -d {SLIME_HOME} ]; then git -C {SLIME_HOME} fetch --depth 1 {SLIME_REPOSITORY} {SLIME_COMMIT}"
    f" && git -C {SLIME_HOME} checkout {SLIME_COMMIT}; fi"
)
"""Shell command of the image's build; does nothing in an image without slime."""

PUT_SLIME_ON_PATH = (
    f"if [ -d {SLIME_HOME} ]; then printf '%s\\n' {SLIME_HOME} {MEGATRON_HOME}"
    """ > "$(python -c 'import site; print(site.getsitepackages()[0])')/rlhaiku-slime.pth"; fi"""
)
"""The same for Python's path: Modal puts /root on it, where `slime` is the repository's folder and not the package, and
Megatron installs `megatron.core` without `megatron.training`."""
