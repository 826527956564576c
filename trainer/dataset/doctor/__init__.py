"""What is wrong with a data set as training material: measures of each picture, and checks that judge them."""
