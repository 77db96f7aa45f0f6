"""Makes a config from data, machine and time: the facts (`facts`), the rules (`rules`), the measurements, and the file."""
