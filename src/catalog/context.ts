import { isAbsolute } from 'node:path';
import { z } from 'zod';
import type { Clock } from '../base/clock.ts';
import type { Capabilities } from '../capabilities/extension.ts';

/** What the catalog asks the host for. */
export const NEEDS = ['assets', 'consensus', 'trust', 'vm', 'monitoring', 'state', 'resources', 'transport'] as const;

export type Lent = Pick<Capabilities, (typeof NEEDS)[number]>;

/** Settings of the extension; the host hands them to `initialize`. */
export const catalogSettings = z.strictObject({
  /** Where `install` without a folder puts packages: absolute path. */
  installRoot: z.string().refine(isAbsolute, 'installRoot must be an absolute path'),
  /** Largest package, bytes of all layers. */
  packageSizeMax: z
    .int()
    .positive()
    .default(16 * 2 ** 30),
  /** Packages whose bundles are checked at once during an install. */
  installConcurrency: z.int().min(1).max(64).default(8),
});

/** Handed to each step of a ladder. */
export interface CatalogContext {
  readonly lent: Lent;
  readonly settings: z.infer<typeof catalogSettings>;
  readonly clock: Clock;
}
