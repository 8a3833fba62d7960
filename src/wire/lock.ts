import type { Digest } from '../base/digest.ts';
import type { AssetId, PackageName } from './names.ts';

/** One package of an installation, as the lock file lists it. */
export interface LockedPackage {
  readonly name: PackageName;
  readonly version: string;
  readonly id: AssetId;
  readonly digest: Digest;
  readonly layers: readonly Digest[];
  /** Names of the packages it depends on, all of them in the same lock. */
  readonly dependencies: readonly PackageName[];
}

/** The content of `hypermesh.lock` (docs/protocol/lock.md). */
export interface Lock {
  readonly formatVersion: 1;
  /** What the user asked for: name -> range. */
  readonly requested: Readonly<Record<string, string>>;
  readonly packages: readonly LockedPackage[];
}
