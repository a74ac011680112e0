"""Load what the notebooks need when nbval runs them; see minillm/school/nbplugin.py."""

pytest_plugins = ["minillm.school.nbplugin"]
