import { SMALL_NETWORK } from '../test/system/support.ts';

const { publish, install } = SMALL_NETWORK.requirements;

/**
 * The proofs that the default network asks for, but for the size of the space commitment, which is small so that no bench waits for
 * it: what is opened and checked is the same, along shorter paths.
 */
export const DEFAULT_PROOFS = {
  ...SMALL_NETWORK,
  requirements: {
    ...SMALL_NETWORK.requirements,
    publish: {
      ...publish,
      space: { ...publish.space, openings: 64 },
      work: { hexDigits: 6 },
      time: { squarings: 2 ** 20, windowMs: 300_000 },
    },
    install: { ...install, time: { squarings: 2 ** 16, windowMs: 60_000 } },
  },
};

/** As {@link DEFAULT_PROOFS}, and publishing costs next to nothing. */
export const CHEAP_PUBLISHING = {
  ...DEFAULT_PROOFS,
  requirements: { ...DEFAULT_PROOFS.requirements, publish },
};
