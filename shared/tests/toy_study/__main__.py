from toy_study.cli import main

raise SystemExit(main())
