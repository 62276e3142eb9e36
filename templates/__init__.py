"""The CloudFormation that Spindrift deploys, written with Troposphere. Nothing here talks to AWS."""
