/** What an author of an extension imports: `import { defineExtension } from 'hypermesh/extension'`. */
export type { CallOptions, Progress } from '../base/call.ts';
export { type Digest, digestOf, isDigest } from '../base/digest.ts';
export { HyperMeshError } from '../base/errors.ts';
export { canonicalJson, type Json } from '../base/json.ts';
export type { Lock, LockedPackage } from '../wire/lock.ts';
export type * from '../wire/manifest.ts';
export type * from '../wire/names.ts';
export type * from '../wire/proof.ts';
export type * from '../wire/signature.ts';
export type * from './assets.ts';
export type * from './consensus.ts';
export * from './extension.ts';
export type * from './monitoring.ts';
export type * from './resources.ts';
export type * from './state.ts';
export type * from './trust.ts';
export type * from './vm.ts';
