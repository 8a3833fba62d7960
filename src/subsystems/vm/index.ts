export {
  type ExecutionOptions,
  type ExecutionSubsystem,
  type GrantKeeper,
  type Languages,
  openExecution,
} from './execution.ts';
export { DEFAULT_LIMITS, type ExecutionLimits } from './limits.ts';
