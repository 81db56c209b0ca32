"""A request's header fields, as handlers see them: taken apart when they are first asked for."""
from collections.abc import Mapping


class Headers(Mapping):
    """A request's header fields: a mapping from a name, in any case, to its value as str (latin-1).

    Several fields of one name are joined with ", ", as RFC 9110 section 5.3 allows; ``getall`` gives them apart.
    """

    __slots__ = ("fields",)

    def __init__(self, lines):
        self.fields = {}
        for line in lines.split(b"\r\n"):
            name, colon, value = line.partition(b":")
            if colon:
                self.fields.setdefault(name.decode("ascii").lower(), []).append(value.strip(b" \t").decode("latin-1"))

    def __getitem__(self, name):
        return ", ".join(self.fields[name.lower()])

    def __contains__(self, name):
        return isinstance(name, str) and name.lower() in self.fields

    def __iter__(self):
        return iter(self.fields)

    def __len__(self):
        return len(self.fields)

    def __repr__(self):
        return f"Headers({dict(self.items())!r})"

    def get(self, name, default=None):
        """The value of a field, or `default`."""
        values = self.fields.get(name.lower())
        return default if values is None else ", ".join(values)

    def getall(self, name):
        """The values of all fields of that name, in order."""
        return list(self.fields.get(name.lower(), ()))

    def keys(self):
        """The names, in lower case."""
        return self.fields.keys()

    def items(self):
        """(name, value) pairs."""
        return [(name, self[name]) for name in self.fields]

    def values(self):
        """The values."""
        return [self[name] for name in self.fields]
