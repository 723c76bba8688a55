"""From network output to one legal, explained command: action table, masks, selection. No bus I/O."""
