"""A config that follows from data, machine and time: what is known (`facts`), the rules (`rules`), what is measured, and the file."""
