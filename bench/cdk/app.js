// The same resources as build/cluster.json, as the CDK's own typed constructs (level 1: the cheapest that it has).
const { App, Stack } = require("aws-cdk-lib");
const { CfnInclude } = require("aws-cdk-lib/cloudformation-include");

const stack = new Stack(new App(), "cluster");
new CfnInclude(stack, "template", { templateFile: process.env.TEMPLATE });
