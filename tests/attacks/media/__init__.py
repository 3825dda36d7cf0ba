"""Awkward and hostile media files, made on the spot. README.md says what each is for."""
