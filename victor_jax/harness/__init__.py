"""Our models inside lmms-eval, which finds them by an entry point of the installed package."""
