"""Speed in pairs: what is compared runs in turn on one machine, and its ratio is what is reported."""
