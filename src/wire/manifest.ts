import { z } from 'zod';
import { utf8 } from '../base/bytes.ts';
import { canonicalJson } from '../base/json.ts';
import { folderAccess, folderName, place } from './grants.ts';
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
  /** Places `host:port` that the program connects to. Whoever runs it is asked first. */
  connect: z.array(place).min(1).max(16).optional(),
  /** Folders of whoever runs it, by the names that it calls them, and what it does with them. He is asked which, first. */
  folders: z
    .record(folderName, folderAccess)
    .refine((map) => Object.keys(map).length <= 8, 'at most 8 folders')
    .optional(),
});

/** For language `julia`; everything left out falls back to the defaults of the runtime. */
const julia = z.strictObject({
  /** Whether packages are compiled once, before their first run. */
  precompile: z.boolean().optional(),
  optimizationLevel: z.literal([0, 1, 2, 3]).optional(),
  /** Never more than a run is given processors, rounded up. */
  threads: z.int().min(1).max(1024).optional(),
  /** A JSON file: an input for which `main` may be called at any time, so that what answers it is compiled ahead of a run. */
  example: relativePath.optional(),
});

/** `catalog.yaml`: what an author says about a package. Unknown keys are refused. Documented in docs/protocol/manifest.md. */
export const packageManifest = z
  .strictObject({
    name: packageName,
    version: semverVersion,
    type: packageType.default('package'),
    /** What runs it: `wasm`, `julia`, `python`, …; unknown languages run as containers. Absent for what is not run. */
    language: z
      .string()
      .regex(/^[a-z][a-z0-9+-]{0,31}$/)
      .optional(),
    /** The file that starts the program, relative to the package. Required with `language`, unless an image says what starts. */
    entry: relativePath.optional(),
    /** The container image that runs: an archive in the package, or the folder of an OCI layout. */
    image: relativePath.optional(),
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
    julia: julia.optional(),
    sandbox: sandbox.default({ network: 'none', environment: [] }),
    privacy: privacyLevel.default('full-public'),
    /** Markdown file shown as the documentation of the package. */
    readme: relativePath.optional(),
    /** Globs of files to leave out, beside `.git/`. */
    exclude: z.array(text(256)).max(128).default([]),
  })
  .superRefine((manifest, context) => {
    if (manifest.image !== undefined && ['wasm', 'julia', 'python'].includes(manifest.language ?? '')) {
      context.addIssue({
        code: 'custom',
        path: ['image'],
        message: `expected no image beside language ${manifest.language}: only other languages run as containers`,
      });
    }
    if (manifest.language !== undefined && manifest.entry === undefined && manifest.image === undefined) {
      context.addIssue({
        code: 'custom',
        path: ['language'],
        message: 'expected `entry` beside it: the file that starts the program',
      });
    }
    if (manifest.entry !== undefined && manifest.language === undefined && manifest.image === undefined) {
      context.addIssue({
        code: 'custom',
        path: ['entry'],
        message: 'expected `language` beside it: what runs this file',
      });
    }
    if (manifest.julia !== undefined && manifest.language !== 'julia')
      context.addIssue({ code: 'custom', path: ['julia'], message: 'expected `language: julia` beside it' });
    for (const kind of DEPENDENCY_KINDS) {
      if (manifest.name in manifest[kind]) {
        context.addIssue({
          code: 'custom',
          path: [kind, manifest.name],
          message: 'expected another package: this one cannot depend on itself',
        });
      }
    }
  });

const DEPENDENCY_KINDS = ['dependencies', 'optionalDependencies', 'peerDependencies', 'devDependencies'] as const;

export type PackageManifest = z.infer<typeof packageManifest>;

/** UTF-8 bytes of a `catalog.yaml`; checked before it is parsed. */
export const MANIFEST_BYTES_MAX = 256 * 1024;

/**
 * A manifest as programs send it: in canonical JSON, which is YAML too, but is read without the parser of that, which takes tens of milliseconds to load.
 * Undefined for anything else, also when it is wrong.
 */
export function manifestOfJson(text: string): PackageManifest | undefined {
  if (!text.startsWith('{') || utf8(text).length > MANIFEST_BYTES_MAX) return undefined;
  try {
    const value: unknown = JSON.parse(text);
    return canonicalJson(value) === text ? packageManifest.safeParse(value).data : undefined;
  } catch {
    return undefined;
  }
}

/** The schema of each part with keys of its own, by its path: `''` for the whole. */
export const MANIFEST_PARTS: Readonly<Record<string, z.ZodObject>> = { '': packageManifest, resources, sandbox };
