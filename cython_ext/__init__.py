"""The compiled floor: engine, parser, cache and bridge. Use :mod:`batchbridge`; nothing here is public."""
