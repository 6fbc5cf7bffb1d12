// Short names for the shapes of `/v1`, which are generated from `openapi.json`.

import type { components } from "./schema";

type Schemas = components["schemas"];

export type Candidates = Schemas["DeployCandidates"];
export type Deployed = Schemas["DeployedAnswer"];
export type FarmEvent = Schemas["Event"];
export type FarmSummary = Schemas["Farm"];
export type FieldError = Schemas["FieldProblem"];
export type Input = Schemas["WorkflowInput"];
export type Invite = Schemas["Invite"];
export type Job = Schemas["Job"];
export type JobError = Schemas["JobError"];
export type JobState = Schemas["JobState"];
export type Jobs = Schemas["Jobs"];
export type Node = Schemas["Node"];
export type NodeWorkspace = Schemas["NodeWorkspace"];
export type Nodes = Schemas["Nodes"];
export type Output = Schemas["Output"];
export type Problem = Schemas["Problem"];
export type Run = Schemas["Run"];
export type Slot = Schemas["Slot"];
export type Workflow = Schemas["Workflow"];
export type Workflows = Schemas["Workflows"];
