"""Data in the layout of Ultralytics: `data.yaml`, pictures, and a text file of labels for each picture."""
