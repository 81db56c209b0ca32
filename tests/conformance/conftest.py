"""The fixtures of these tests: `site`, served once a module with each `engine`, and the `gate` of its slow handler."""

from support.serving import engine as engine
from support.site import gate as gate
from support.site import site as site
