import {
  aboutNode,
  aboutResource,
  auditAnswer,
  auditQuestion,
  holders,
  keeping,
  reached,
  resourceIds,
} from '../wire/overlay.ts';

/** Every message of the overlay, by the name that the vectors give it. */
export const OVERLAY_MESSAGES = {
  aboutNode,
  reached,
  resourceIds,
  aboutResource,
  holders,
  keeping,
  auditQuestion,
  auditAnswer,
} as const;
