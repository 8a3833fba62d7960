/** The typed client of a node, and the types of what it answers. */
export type {
  AssetRecord,
  AssetState,
  InstalledPackage,
} from '../capabilities/assets.ts';
export type { StakeAccount } from '../capabilities/consensus.ts';
export type { NetworkPlace, ProposalInfo, SequencerInfo } from '../capabilities/membership.ts';
export type { Event } from '../capabilities/monitoring.ts';
export type { CertificateInfo } from '../capabilities/trust.ts';
export type { CatalogRun, InstallResult, PublishResult, VerifyResult } from '../catalog/api.ts';
export { Client } from './client.ts';
