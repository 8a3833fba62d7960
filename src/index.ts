/** What a program imports: `import { HyperMesh } from 'hypermesh'`. Extensions import `hypermesh/extension`. */
export type { CallOptions, Progress } from './base/call.ts';
export { ERRORS, type ErrorCode, EXIT, HyperMeshError } from './base/errors.ts';
export type * from './catalog/api.ts';
export type { HostNode, NodeConfig, NodeStatus } from './host/node.ts';
export { type OfflineJudges, offlineJudges } from './host/offline.ts';
export { createStream, openStream, type SealedSource, SealedStream, streamSecret } from './host/streams.ts';
export { HyperMesh, type HyperMeshConfig, verifyBundleOffline } from './hypermesh.ts';
