"""The allow-list that ships with the package: where packages, code and models come from.

No pattern covers hosts whose content any stranger can put there under a name of his own (such as ``*.github.io``), for
a name that is looked up is itself a message to whoever answers for it.
"""

from __future__ import annotations

from typing import Final

from agentvm_kernel.egress.names import Pattern
from agentvm_kernel.egress.policy import Rule, Source, Verdict

ALLOWED: Final = {
    "Python packages": ("pypi.org", "*.pypi.org", "files.pythonhosted.org", "pypi.python.org", "bootstrap.pypa.io"),
    "conda": ("conda.anaconda.org", "repo.anaconda.com", "*.prefix.dev"),
    "npm": ("registry.npmjs.org", "registry.yarnpkg.com", "nodejs.org"),
    "Debian": ("deb.debian.org", "ftp.debian.org", "security.debian.org", "snapshot.debian.org"),
    "Ubuntu": ("archive.ubuntu.com", "*.archive.ubuntu.com", "security.ubuntu.com", "ports.ubuntu.com"),
    "Rust": ("crates.io", "index.crates.io", "static.crates.io", "static.rust-lang.org", "sh.rustup.rs"),
    "Go": ("proxy.golang.org", "sum.golang.org", "go.dev"),
    "R": ("cran.r-project.org", "cloud.r-project.org"),
    "GitHub": (
        "github.com",
        "api.github.com",
        "codeload.github.com",
        "raw.githubusercontent.com",
        "objects.githubusercontent.com",
        "release-assets.githubusercontent.com",
        "media.githubusercontent.com",
        "github-cloud.githubusercontent.com",
    ),
    "GitLab": ("gitlab.com", "registry.gitlab.com"),
    "Hugging Face": (
        "huggingface.co",
        "hf.co",
        "cdn-lfs.huggingface.co",
        "cdn-lfs.hf.co",
        "cdn-lfs-us-1.hf.co",
        "cdn-lfs-eu-1.hf.co",
        "cas-bridge.xethub.hf.co",
        "cas-server.xethub.hf.co",
        "transfer.xethub.hf.co",
        "datasets-server.huggingface.co",
        "api-inference.huggingface.co",
        "router.huggingface.co",
    ),
    "model APIs": (
        "api.openai.com",
        "api.anthropic.com",
        "generativelanguage.googleapis.com",
        "api.mistral.ai",
        "api.cohere.com",
        "api.deepseek.com",
        "api.groq.com",
        "api.together.xyz",
        "api.x.ai",
        "openrouter.ai",
    ),
}
"""Names by what they are for."""


def default_rules() -> tuple[Rule, ...]:
    """Return the rules that hold unless the configuration says ``defaults = false``."""
    return tuple(
        Rule(Pattern.parse(text), Verdict.ALLOW, Source.DEFAULT) for texts in ALLOWED.values() for text in texts
    )
