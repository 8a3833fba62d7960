export { type MonitoringLimits, type MonitoringSubsystem, openMonitoring } from './monitoring.ts';
