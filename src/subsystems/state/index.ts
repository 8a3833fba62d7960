export { exportState, type ImportOptions, type ImportReport, importState, recoverImport } from './export.ts';
export { openState, type StateLimits, type StateSubsystem } from './state.ts';
