"""Models, runs, data and files of a few kilobytes that tests of all rooms are made with."""
