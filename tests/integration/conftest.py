"""The fixture `engine`: each test that asks for it runs with each engine."""

from support.native import natives as natives
from support.serving import engine as engine
