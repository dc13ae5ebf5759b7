"""The `na-deploy` command, one file per subcommand."""
