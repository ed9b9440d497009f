"""Schema, migrations, unit of work and views."""
