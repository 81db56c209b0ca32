"""The fixture `engine`: each test that asks for it runs with each engine."""

from support.serving import engine as engine
