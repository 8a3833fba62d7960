export { type ExecutionOptions, type ExecutionSubsystem, openExecution } from './execution.ts';
export { DEFAULT_LIMITS, type ExecutionLimits } from './limits.ts';
