"""Pictures of results: which figures a file of results has, and how they are drawn.

Each figure is a file with a function ``draw(results)``, which returns a `Sheet`, or None and why there is nothing to
draw. What they share is in `groups` (which runs belong together, and their spread), `style` (colours, markers, fonts)
and `sheet` (title, notes, machine, legend). Nothing here opens a display.
"""
