"""What would spoil a training, looked for before it starts: `examination` finds, `report` shows."""
