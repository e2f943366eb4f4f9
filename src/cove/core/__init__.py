"""What Cove decides: the only home of rules, the same for every dialect. It speaks no HTTP and no dialect.

Enter through `facade.open_core`. Every call takes `who` first and checks scope and project before anything else;
an object of another project does not exist. Limits and ranges are in `validation.py`, room in `admission.py`.
"""
