import { z } from 'zod';
import { packageName, packageType, privacyLevel, semverRange, semverVersion } from './names.ts';

/** A number of bytes: an integer, or text such as `512MiB`. */
const UNITS = { B: 1, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40 } as const;
export const byteCount = z.union([
  z.int().nonnegative(),
  z
    .string()
    .regex(/^\d{1,6}(\.\d{1,3})? ?(B|KiB|MiB|GiB|TiB)$/, 'expected a size such as 512MiB')
    .transform((text) => {
      const [, digits, unit] = /^([\d.]+) ?(\w+)$/.exec(text)!;
      return Math.round(Number(digits) * UNITS[unit as keyof typeof UNITS]);
    }),
]);

const relativePath = z
  .string()
  .min(1)
  .max(1024)
  .refine(
    (path) =>
      !path.startsWith('/') &&
      !path.includes('\\') &&
      !path.split('/').some((part) => part === '..' || part === '' || part === '.'),
    'expected a relative path inside the package',
  );

const text = (max: number) => z.string().min(1).max(max);
const dependencies = z
  .record(packageName, semverRange)
  .refine((map) => Object.keys(map).length <= 512, 'at most 512 dependencies');

/** What the program may use at most while it runs. Everything left out falls back to the defaults of the runtime. */
const resources = z.strictObject({
  memory: byteCount.optional(),
  cpuCores: z.number().positive().max(1024).optional(),
  /** Wall-clock seconds for one run. */
  timeoutSeconds: z.number().positive().max(86_400).optional(),
  /** Private scratch space. */
  disk: byteCount.optional(),
  /** Bytes of standard output and error together. */
  output: byteCount.optional(),
});

/** What the sandbox opens beyond nothing. The user is shown it; the node's own policy may be stricter. */
const sandbox = z.strictObject({
  network: z.literal('none').default('none'),
  /** Names of environment variables that the caller may pass in. */
  environment: z
    .array(z.string().regex(/^[A-Za-z_][A-Za-z0-9_]{0,127}$/))
    .max(64)
    .default([]),
});

/** `catalog.yaml`: what an author says about a package. Unknown keys are refused. Documented in docs/protocol/manifest.md. */
export const packageManifest = z.strictObject({
  name: packageName,
  version: semverVersion,
  type: packageType.default('package'),
  /** What runs it: `wasm`, `julia`, `python`, …; unknown languages run as containers. Absent for what is not run. */
  language: z
    .string()
    .regex(/^[a-z][a-z0-9+-]{0,31}$/)
    .optional(),
  /** The file that starts the program, relative to the package. Required with `language`. */
  entry: relativePath.optional(),
  description: text(1_000).optional(),
  keywords: z.array(text(64)).max(32).default([]),
  authors: z.array(text(200)).max(64).default([]),
  /** An SPDX licence expression. */
  license: text(100).optional(),
  homepage: z
    .url({ protocol: /^https?$/ })
    .max(500)
    .optional(),
  repository: z
    .url({ protocol: /^(https?|git|ssh)$/ })
    .max(500)
    .optional(),
  dependencies: dependencies.default({}),
  optionalDependencies: dependencies.default({}),
  peerDependencies: dependencies.default({}),
  devDependencies: dependencies.default({}),
  resources: resources.default({}),
  sandbox: sandbox.default({ network: 'none', environment: [] }),
  privacy: privacyLevel.default('full-public'),
  /** Markdown file shown as the documentation of the package. */
  readme: relativePath.optional(),
  /** Globs of files to leave out, beside `.git/`. */
  exclude: z.array(text(256)).max(128).default([]),
});

export type PackageManifest = z.infer<typeof packageManifest>;
