"""Text: a prompt with speech and sound, mended, to conditioning for both towers."""

from comfy_api.latest import io

from ..ovi_model.core_facts import answer, search_aliases
from ..ovi_model.text.encode import encode_prompts
from ..ovi_model.text.mends import mend_answer
from ..ovi_model.text.prompt import SOUND_FORMS, check_inputs, write_sound

VIDEO_NEGATIVE = "jitter, bad hands, blur, distortion"
AUDIO_NEGATIVE = "robotic, muffled, echo, distorted"


class OviTextEncode(io.ComfyNode):
    """A prompt and two negative prompts to CONDITIONING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OviTextEncode",
            display_name="Ovi Text Encode",
            category="Ovi/text",
            **search_aliases(
                "talking",
                "lip sync",
                "speech",
                "voice",
                "dialogue",
                "prompt with sound",
                "CLIP Text Encode",
            ),
            description="Encodes one prompt for picture and sound, and a negative prompt for each. "
            "Speech goes into <S>...<E>, the sound comes last. Text is read as written: "
            "parentheses are no weights.",
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="umT5, from 'Ovi Text Encoder Loader' or 'Load CLIP' with type 'wan'.",
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What is seen, with speech as <S>Hello!<E>, then what is heard, as "
                    "'Audio: ...' or <AUDCAP>...<ENDAUDCAP>. The model reads the first 512 tokens, "
                    "about 350 words.",
                ),
                io.String.Input(
                    "video_negative",
                    default=VIDEO_NEGATIVE,
                    dynamic_prompts=True,
                    tooltip="What the picture should not have. May be empty.",
                ),
                io.String.Input(
                    "audio_negative",
                    default=AUDIO_NEGATIVE,
                    dynamic_prompts=True,
                    tooltip="What the sound should not have. May be empty.",
                ),
                io.Combo.Input(
                    "sound_tag",
                    options=list(SOUND_FORMS),
                    default="Audio:",
                    tooltip="How the checkpoint was taught to read sound. 'Audio:' for the 960x960 "
                    "models (1.1), '<AUDCAP>' for the 720x720 model (1.0): the prompt may be in "
                    "either form, it is rewritten. 'as written' leaves it alone.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "positive", display_name="positive", tooltip="What the clip should be."
                ),
                io.Conditioning.Output(
                    "negative",
                    display_name="negative",
                    tooltip="What picture and sound should not be.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, prompt=None, sound_tag=None) -> bool | str:
        """Say what is wrong with typed inputs before anything is loaded."""
        return answer(check_inputs, prompt=prompt, sound_tag=sound_tag)

    @classmethod
    def execute(
        cls, clip, prompt: str, video_negative: str, audio_negative: str, sound_tag: str
    ) -> io.NodeOutput:
        """Return positive and negative conditioning."""
        prompt = write_sound(prompt, sound_tag)
        return io.NodeOutput(*encode_prompts(clip, prompt, video_negative, audio_negative))


class OviMendPrompt(io.ComfyNode):
    """A text that a language model wrote to a prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OviMendPrompt",
            display_name="Ovi Mend Prompt",
            category="Ovi/text",
            **search_aliases("prompt enhance", "prompt writer", "Generate Text", "LLM"),
            description="Puts a prompt that a language model wrote in the form that Ovi reads: "
            "tags, speech in quotes, the sound. A prompt in that form stays as it is.",
            inputs=[
                io.String.Input(
                    "text",
                    force_input=True,
                    tooltip="What 'Generate Text' or another node wrote. Reasoning and marks "
                    "around the prompt are taken off. Typed prompts are mended in 'Ovi Text "
                    "Encode' itself.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "prompt",
                    display_name="prompt",
                    tooltip="For 'Ovi Text Encode', or for 'Preview as Text' to read and copy it.",
                ),
            ],
        )

    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:
        """Return the mended prompt."""
        return io.NodeOutput(mend_answer(text))
