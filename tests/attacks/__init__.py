"""Files and inputs that should do no harm, and the builders that make them."""
