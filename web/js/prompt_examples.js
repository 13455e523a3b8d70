// Prompts to begin with, in the form that Ovi reads: what is seen, speech where it is spoken, the sound last.

export const EXAMPLES = {
  "A person speaks":
    "A woman with grey hair sits at a kitchen table by a window, morning light on her face. She looks into the camera, smiles and says, <S>I kept your letter all these years.<E> The camera stays still, medium close-up.\n\nAudio: a warm, low female voice, a clock ticking, birds outside.",
  "Two people talk":
    "Two men in work clothes stand beside a red tractor in a field at sunset. The older one points at the sky and asks, <S>Will it rain?<E> The younger one shakes his head and answers, <S>Not before Sunday.<E> The camera holds still.\n\nAudio: a rough male voice, then a young male voice, wind in the grass, crickets.",
  "A singer on a stage":
    "A young man with a guitar sits on a small stage under one spotlight. He closes his eyes and sings, <S>Carry me home tonight.<E> The camera moves in slowly.\n\nAudio: a soft tenor voice singing, acoustic guitar, a quiet room.",
  "Sound without speech":
    "A blacksmith strikes a glowing bar on an anvil in a dark workshop. Sparks fly at each blow. The camera holds still, close-up.\n\nAudio: hard metal blows, the hiss of a fire, a low room echo.",
  "An animal":
    "A brown dog stands on a beach, looks into the camera and barks twice, then runs toward the waves. Wide shot, bright day.\n\nAudio: two deep barks, breaking waves, gulls far away.",
  "Miniature: a ball": "A red ball bounces three times. Audio: three low knocks.",
  "Miniature: a lamp": "A green lamp flashes twice. Audio: two high beeps.",
  "Miniature: a face": "A yellow face says <S>ba ba ba<E>. Audio: a middle voice.",
}

// Words that tell how a voice sounds, to be put into the sound's part.
export const VOICES = [
  "a clear, warm female voice",
  "a deep, calm male voice",
  "a young, bright voice",
  "an old, rough voice",
  "a whisper, close to the microphone",
  "a loud voice in a large hall",
]
