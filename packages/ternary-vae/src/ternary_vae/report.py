def write_run_report(folder, config, model): pass
