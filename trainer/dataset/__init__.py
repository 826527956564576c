"""What lies in a folder of pictures: facts, captions, shapes, and the data sets that the app keeps. Imports no torch."""
