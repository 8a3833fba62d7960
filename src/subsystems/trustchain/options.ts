import type { Clock } from '../../base/clock.ts';
import { HyperMeshError } from '../../base/errors.ts';

export interface TrustLimits {
  /** Validated chains that are remembered. */
  readonly chainsMax: number;
  /** Leaves that may wait for the log. */
  readonly logWaitingMax: number;
  /** After this long without a signature the key worker ends. */
  readonly keysIdleMs: number;
  /** Cost of the passphrase: scrypt with N = 2 to this power. For new homes only. */
  readonly passphraseLog2N: number;
}

export const LIMITS: TrustLimits = { chainsMax: 1_024, logWaitingMax: 10_000, keysIdleMs: 5_000, passphraseLog2N: 17 };

export interface TrustOptions {
  /** Of this home's trust data; made when missing, readable by its owner only. */
  readonly directory: string;
  readonly clock: Clock;
  /** Name of the network whose root a new home becomes; `local` by default. */
  readonly network?: string;
  /** Opens the key store. Without one, a random key file of mode 0600 does. */
  readonly passphrase?: string;
  /** Name of the person or machine in new certificates; `local` by default. */
  readonly subject?: string;
  readonly limits?: Partial<TrustLimits>;
}

/** With every default applied. */
export interface SettledOptions extends TrustOptions {
  readonly network: string;
  readonly subject: string;
  readonly limits: TrustLimits;
}

/** What a network or a subject may be called. */
export const NAME = /^[A-Za-z0-9][A-Za-z0-9 ._@-]{0,31}$/;

/** Errors: `config-invalid`. */
export function settle(options: TrustOptions): SettledOptions {
  const network = options.network ?? 'local';
  const subject = options.subject ?? 'local';
  for (const [what, value] of Object.entries({ network, subject })) {
    if (!NAME.test(value)) {
      throw new HyperMeshError(
        'config-invalid',
        `The ${what} has to be 1 to 32 letters, digits, spaces or . _ @ -, starting with a letter or digit.`,
      );
    }
  }
  if (options.passphrase !== undefined) checkPassphrase(options.passphrase);
  return { ...options, network, subject, limits: { ...LIMITS, ...options.limits } };
}

/** Errors: `config-invalid`. */
export function checkPassphrase(passphrase: string): void {
  if (passphrase === '' || passphrase.length > 1_024)
    throw new HyperMeshError('config-invalid', 'The passphrase has to have 1 to 1024 characters.');
}
