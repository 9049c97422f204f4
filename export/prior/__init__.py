"""A published network as the student's teacher, and its pictures on disk.

Folder, class and option are called `prior`. Sentences say "teacher".
"""
