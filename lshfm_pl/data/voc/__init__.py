"""Data in the folder layout of the PASCAL VOC devkit."""
