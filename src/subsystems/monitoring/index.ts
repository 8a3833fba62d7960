export { type MonitoringLimits, type MonitoringSubsystem, type NodeHealth, openMonitoring } from './monitoring.ts';
