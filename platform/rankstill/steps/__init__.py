"""The steps from judgements to a registered student, each done once for the same inputs."""
