"""Formats of pictures with any number of labels each."""

WANTED = (
    "a .csv file with the column path and one column a label (or a column labels), a folder with train.txt whose lines are "
    "`picture,label,label`, COCO's annotations (a .json file, or their folder), or a VOC folder with JPEGImages and Annotations"
)
