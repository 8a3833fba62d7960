export { openResources, type ResourceLimits, type ResourcesSubsystem } from './resources.ts';
