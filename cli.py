from djepa_mm.cli import main

main()
